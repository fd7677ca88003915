 # a comment
 FROM scratch
　 RUN --mount=type=cache,target=/root/.m2 \
 # a comment
 
  --mount=type=cache,target=/root/.gradle mvn
 
 onbuild run --mount=type=cache,target=/root/.m2 <<EOF
mvn
EOF
