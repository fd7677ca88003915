FROM scratch
RUN --mount="type=cache,target=/my files" --mount=type=cache,target=/root/.m2 mvn
RUN --mount=type=cache,target=/my\ files mvn
