FROM scratch AS one
RUN --mount=type=cache,target=/root/.m2 mvn
FROM scratch AS one-more
RUN --mount=type=cache,target=/root/.m2,sharing=locked mvn
FROM one
RUN --mount=type=cache,target=/root/.m2 mvn
