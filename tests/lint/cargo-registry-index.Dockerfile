FROM scratch
RUN --mount=type=cache,target=/root/.cargo/registry/index cargo fetch
