FROM scratch
RUN echo \\
RUN --mount=type=cache,target=/root/.m2 mvn
