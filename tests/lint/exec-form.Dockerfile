FROM scratch
RUN --mount=type=cache,target=/src/target ["cargo", "build"]
RUN --mount=type=cache,target=/src/registry [ "cargo", "fetch", "<<EOF" ]
RUN --mount=type=cache,target=/root/.m2 [ -d /x ] && mvn
