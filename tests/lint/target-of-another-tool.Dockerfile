FROM scratch
RUN --mount=type=cache,target=/src/target mvn package
