FROM scratch
RUN --mount=type=cache,target=/usr/local/cargo cargo fetch
