# syntax=docker/dockerfile:1
FROM alpine:3 AS base
LABEL a=b
HEALTHCHECK CMD true
SHELL ["/bin/sh", "-c"]
USER 1000
EXPOSE 80
VOLUME /data
STOPSIGNAL SIGTERM
RUN echo --mount=type=cache,target=/root/.m2
ENTRYPOINT ["true"]
