from scratch
run --mount=Type=Cache,Target=/root/.m2 mvn
Run --mount=type=cache,target=/root/.m2,Sharing=locked mvn
