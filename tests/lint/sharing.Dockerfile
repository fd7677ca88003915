FROM scratch
RUN --mount=type=cache,target=/root/.m2,sharing=locked mvn
RUN --mount=type=cache,sharing=private,target=/root/.m2 mvn
RUN --mount=type=cache,target=/root/.m2,sharing=shared mvn
RUN --mount=type=cache,target=/root/.m2,sharing=LOCKED mvn
