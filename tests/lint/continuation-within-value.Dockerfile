FROM scratch
RUN --mount=type=cache,\
target=/root/\
.m2\
,id=a mvn
RU\
N --mo\
unt=type=cache,target=/root/.m2 mvn
