FROM scratch AS base
ARG CACHE=/root/.m2
ARG NPM
FROM base AS again
RUN --mount=type=cache,target=$CACHE mvn
FROM Again
ARG CACHE
RUN --mount=type=cache,target=$CACHE mvn
ARG CACHE=/root/.npm
RUN --mount=type=cache,target=$CACHE mvn
RUN --mount=type=cache,target=$NPM mvn
FROM scratch
RUN --mount=type=cache,target=$CACHE mvn
