FROM scratch
# syntax comes too late
RUN --mount=type=cache,target=/root/.m2 \
  # why
  --mount=type=cache,target=/var/lib/apt\
  mvn
RUN --mount=type=cache,target=/root/.m2,\
id=a <<EOF
RUN --mount=type=cache,target=/root/.m2 mvn
EOF
RUN --mount=type=cache,target=/root/.m2
