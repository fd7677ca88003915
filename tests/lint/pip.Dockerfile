FROM scratch
RUN --mount=type=cache,target=/root/.cache/pip pip install -r requirements.txt
