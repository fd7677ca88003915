FROM scratch
RUN --mount=type=cache,target=/root/.yarn/berry/cache yarn install --immutable
