FROM scratch
RUN --mount=type=cache,target=/var/cache/zypp zypper install gcc
