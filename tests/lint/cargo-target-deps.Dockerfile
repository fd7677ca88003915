FROM scratch
RUN --mount=type=cache,target=/src/target/release/deps cargo build --release
