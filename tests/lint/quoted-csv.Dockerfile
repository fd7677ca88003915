FROM scratch
RUN --mount=type=cache,\"target=/root/.m2\" mvn
RUN --mount='type=cache,"target=/root/.m2","id=a,b"' mvn
RUN --mount='type=cache,"target=/a,sharing=locked"' mvn
