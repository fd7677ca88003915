FROM scratch
RUN --mount=type=cache,target=/root/.m2