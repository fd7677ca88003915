FROM scratch
RUN --mount=type=cache,id=maven,target=/root/.m2,from=seed,source=/m2,mode=0755,uid=1000,gid=1000 mvn
RUN --mount=id=maven,dst=/root/.m2,type=cache mvn
RUN --mount=destination=/root/.m2,type=cache,id=other mvn
