FROM scratch
RUN --mount=type=cache,target=/root/.cargo/git cargo fetch
