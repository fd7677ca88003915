FROM scratch
RUN --mount=type=cache,target=/tmp/cache composer install
