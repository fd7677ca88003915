FROM scratch
RUN \
    # the first
    --mount=type=cache,target=/root/.m2 \
# the second: --mount=type=cache,target=/root/.m2 \

    --mount=type=cache,target=/var/lib/apt \
    mvn
# RUN --mount=type=cache,target=/root/.m2 mvn
  # RUN --mount=type=cache,target=/root/.m2 mvn
