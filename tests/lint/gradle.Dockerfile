FROM scratch
RUN --mount=type=cache,target=/home/gradle/.gradle gradle build
