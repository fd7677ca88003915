FROM scratch
RUN --mount=type=cache,target=/pnpm/store pnpm install
