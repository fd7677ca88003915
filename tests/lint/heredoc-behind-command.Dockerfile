FROM scratch
RUN --mount=type=cache,target=/src/target bash -e <<'EOF'
cargo build
RUN --mount=type=cache,target=/root/.m2 mvn \
EOF
RUN --mount=type=cache,target=/src/target bash -e <<-EOF
	make
	EOF
