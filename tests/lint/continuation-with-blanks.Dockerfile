FROM scratch
RUN --mount=type=cache,target=/root/.m2 \  

  mvn
RUN --mount=type=cache,target=/var/lib/apt\	
  apt-get update
