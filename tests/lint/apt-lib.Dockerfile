FROM scratch
RUN --mount=type=cache,target=/var/lib/apt apt-get update
