FROM scratch
RUN --mount=type=cache,target=/root/.npm npx --yes eslint .
RUN --mount=type=cache,target=/root/.npm/_npx node --version
RUN --mount=type=cache,target=/root/.npm/_cacache npx --yes eslint .
RUN --mount=type=cache,target=/root/.npm npm ci && ./npx.sh
ENV npm_config_cache=/cache
RUN --mount=type=cache,target=/cache npm ci && npx --yes tsc
