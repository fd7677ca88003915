# syntax=docker/dockerfile:1
# escape=\
FROM scratch
RUN echo `
RUN --mount=type=cache,target=/root/.m2 \
  mvn
