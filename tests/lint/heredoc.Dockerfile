FROM scratch
RUN --mount=type=cache,target=/root/.m2 <<EOF
RUN --mount=type=cache,target=/root/.m2 mvn
FROM nowhere
EOF
RUN --mount=type=cache,target=/root/.m2 mvn
