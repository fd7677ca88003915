FROM scratch
ONBUILD RUN --mount=type=cache,target=/root/.m2 mvn
onbuild \
  run --mount=type=cache,target=/root/.m2 <<EOF
RUN --mount=type=cache,target=/root/.m2 mvn
EOF
ONBUILD COPY . .
