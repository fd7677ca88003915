FROM scratch
ARG CACHE
RUN --mount=type=cache,target=$CACHE mvn
RUN --mount=type=cache,target=/root/.m2,sharing=$SHARING mvn
RUN --mount=type=cache,target=/root/.m2,id=m2-$TARGETARCH mvn
RUN --mount=type=cache,target=${CACHE:-/root/.m2} mvn
RUN --mount=type=cache,target=${CACHE#a} mvn
RUN --mount=type=cache,target=${OTHER:-/root/.m2} mvn
