  	# escape=`
FROM scratch
RUN --mount=type=cache,target=/root/.m2 `
  --mount=type=cache,target=/root/.gradle `
  mvn
RUN --mount=type=cache,target=/root/.m2 \
