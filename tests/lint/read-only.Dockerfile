FROM scratch
RUN --mount=type=cache,target=/root/.m2,readonly mvn -o
RUN --mount=type=cache,target=/root/.m2,ro=true mvn -o
RUN --mount=type=cache,ro,target=/root/.m2 mvn -o
RUN --mount=type=cache,target=/root/.m2,ro=false mvn
RUN --mount=type=cache,target=/root/.m2,rw=false mvn -o
RUN --mount=type=cache,target=/root/.m2,ro,rw mvn
