FROM scratch
RUN --mount=type=cache,target=/src/target/release cargo build --release
