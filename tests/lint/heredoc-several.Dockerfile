FROM scratch
RUN --mount=type=cache,target=/root/.m2 cat <<A 3<<"B C" && \
  mvn
one
A
RUN --mount=type=cache,target=/root/.m2 mvn
B C
RUN --mount=type=cache,target=/root/.m2 mvn
