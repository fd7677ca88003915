FROM scratch
RUN --mount=type=cache,target=/opt/rust/home/registry cargo fetch
