FROM scratch
RUN --mount=type=cache,target=/var/cache/apt --mount=type=bind,target=/src --mount=type=cache,target=/var/lib/apt,sharing=locked --mount=type=cache,target=/root/.m2 apt-get update
