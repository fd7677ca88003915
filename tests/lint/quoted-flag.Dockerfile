FROM scratch
RUN --"mount=type=cache,target=/root/.m2" mvn
RUN --mo"unt"=type=cache,target=/root/.m2 mvn
RUN --'mount'=type=cache,target=/root/.m2 mvn
RUN --moun\t=type=cache,target=/root/.m2 mvn
RUN --"mount=type=cache,target=/a b/.m2" --mount=type=cache,target=/root/.m2 mvn
RUN "--mount=type=cache,target=/root/.m2" mvn
RUN --"" --mount=type=cache,target=/root/.m2 mvn
RUN --mounts=type=cache,target=/root/.m2 mvn
RUN --"mount=type=cache,target=/root/.m2","sharing=locked" mvn
