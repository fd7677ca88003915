FROM scratch
RUN --network=none   --mount=type=cache,target=/root/.m2   --security=sandbox mvn
