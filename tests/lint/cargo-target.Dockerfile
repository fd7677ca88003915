FROM scratch
RUN --mount=type=cache,target=/src/target cargo build --release
