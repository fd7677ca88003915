FROM scratch
RUN --mount=type=cache mvn
RUN --mount=type=cache,target=/root/.m2,sharing=sometimes mvn
RUN --mount=type=cache,target=/root/.m2,size=1 mvn
RUN --mount mvn
