FROM scratch
RUN \
    --mount=type=cache,target=/root/.m2 \
    --mount=type=cache,target=/var/lib/apt \
    mvn
RUN --mount=type=cache,target=/root/.m2\
 mvn
