FROM scratch
RUN --mount=type=cache,target=/root/.npm npm ci
