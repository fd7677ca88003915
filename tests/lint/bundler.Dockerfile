FROM scratch
RUN --mount=type=cache,target=/usr/local/bundle bundle install
