ARG ROOT=/root
ARG HIDDEN=/nowhere
FROM scratch AS base
ARG ROOT
ARG MODE=locked NAME="m2"
ENV MAVEN=${ROOT}/.m2 EMPTY=
ENV LEGACY /root/.m2
RUN --mount=type=cache,target=$MAVEN mvn
RUN --mount=type=cache,target=$ROOT/.$NAME mvn
RUN --mount=type=cache,target=${MAVEN:-/x},sharing=${MODE} mvn
RUN --mount=type=cache,target=${EMPTY:-/root/.m2} mvn
RUN --mount=type=cache,target=${MAVEN:+/root/.gradle} gradle
RUN --mount=type=cache,target=$LEGACY mvn
RUN --mount=type=cache,target=$HIDDEN/.m2 mvn
FROM base
RUN --mount=type=cache,target=$MAVEN mvn
RUN --mount=type=cache,target=$ROOT/.m2 mvn
