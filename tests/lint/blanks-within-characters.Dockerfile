FROM scratch
# no-break spaces: two bytes, of which BuildKit takes the second for a blank
RUN --mount=type=cache,target=/root/.m2,id=m2 mvn
RUN --mount=type=cache,target=/root/.m2 mvn
RUN --mount=type=cache,target=/voilà/.m2 mvn
RUN --mount=type=cache,target="/voilà/.m2" mvn
RUN --mount=type=cache,target=/m2 /.m2 mvn
RUN --network=none echo --mount=type=cache,target=/root/.m2 x
