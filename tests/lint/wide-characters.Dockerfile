FROM scratch
RUN --mount=type=cache,target=/größe --mount=type=cache,target=/root/.m2 mvn # 😀
