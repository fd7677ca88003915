FROM scratch
RUN --mount=type=cache,target=/var/cache/apt apt-get update
