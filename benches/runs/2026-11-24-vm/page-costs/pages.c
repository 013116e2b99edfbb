#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <unistd.h>
#include <fcntl.h>
#include <errno.h>
#include <time.h>
#include <sys/mman.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
struct pf { uint64_t gpa, size, flags, pad[5]; };
#define KVM_PRE_FAULT _IOWR(0xae, 0xd5, struct pf)
#define MEM (128ull<<20)
static double now(void){ struct timespec t; clock_gettime(CLOCK_MONOTONIC,&t); return t.tv_sec*1e6+t.tv_nsec/1e3; }
static char *map(int fd){ 
  char *a = mmap(0, MEM+(2<<20), PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0);
  a=(char*)(((uintptr_t)a+(2<<20)-1)&~((2ull<<20)-1));
  char*p=mmap(a, MEM, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_NORESERVE|MAP_FIXED, fd, 0);
  if(p!=a){perror("mmap");exit(1);} return p; }
static int N=240; static uint32_t pg[4096];
static void scattered(void){ /* 24 regions x 10 single pages, from region 8 */ int n=0; for(int r=0;r<24;r++) for(int i=0;i<10;i++) pg[n++]=(8+r)*512+ i*47+ (r*13)%40; N=n; }
static int vmfd,cpu; static int kvm;
static void vm(char*mem){ kvm=open("/dev/kvm",O_RDWR|O_CLOEXEC); vmfd=ioctl(kvm,KVM_CREATE_VM,0);
 struct kvm_userspace_memory_region r={0,0,0,MEM,(uint64_t)mem}; if(ioctl(vmfd,KVM_SET_USER_MEMORY_REGION,&r))perror("slot");
 ioctl(vmfd,KVM_CREATE_IRQCHIP,0); cpu=ioctl(vmfd,KVM_CREATE_VCPU,0); }
static void unvm(void){close(cpu);close(vmfd);close(kvm);} 
static int prefault(uint64_t gpa,uint64_t len){ struct pf p={gpa,len}; int r; while(p.size){ r=ioctl(cpu,KVM_PRE_FAULT,&p); if(r<0&&errno!=EINTR&&errno!=EAGAIN) {return -errno;} } return 0; }
#define T(name,per,...) do{ double t=now(); __VA_ARGS__; t=now()-t; printf("%-60s %9.1f us, %7.2f each\n",name,t,t/(per)); fflush(stdout);}while(0)
#define EACH(...) for(int i=0;i<N;i++){ char*p=mem+(uint64_t)pg[i]*4096; uint64_t gpa=(uint64_t)pg[i]*4096; (void)p;(void)gpa; __VA_ARGS__; }
int main(int c,char**v){
 int fd=open(v[1],O_RDWR|O_CREAT|O_TRUNC,0600); ftruncate(fd,MEM);
 { char*b=malloc(1<<20); memset(b,7,1<<20); for(uint64_t o=0;o<MEM;o+=1<<20) pwrite(fd,b,1<<20,o); }
 scattered(); static char buf[2<<20]; memset(buf,3,sizeof buf);
 char*mem; volatile char sink;
 mem=map(fd); T("null madvise-ish syscall (getppid)",N,EACH(syscall(SYS_getppid)));
 T("POPULATE_WRITE single scattered, no VM",N,EACH(madvise(p,4096,MADV_POPULATE_WRITE)));
 vm(mem); printf("cap prefault %d\n", ioctl(kvm,KVM_CHECK_EXTENSION,236));
 { int e=0; T("PRE_FAULT single of populated-write",N,EACH(e|=prefault(gpa,4096))); printf("e=%d\n",e);} 
 T("PRE_FAULT again (already mapped)",N,EACH(prefault(gpa,4096)));
 unvm(); munmap(mem,MEM);
 mem=map(fd); T("user write touch single scattered",N,EACH(*(volatile char*)p=1)); munmap(mem,MEM);
 mem=map(fd); T("POPULATE_WRITE 8-page runs x30",240,for(int i=0;i<30;i++)madvise(mem+(uint64_t)(8+i/2)*(2<<20)+(i%2)*200*4096,8*4096,MADV_POPULATE_WRITE)); 
 T("POPULATE_WRITE 512 run",512,madvise(mem+(2<<20),2<<20,MADV_POPULATE_WRITE)); munmap(mem,MEM);
 mem=map(fd); T("POPULATE_READ single scattered",N,EACH(madvise(p,4096,MADV_POPULATE_READ)));
 vm(mem); T("PRE_FAULT single after POPULATE_READ",N,EACH(prefault(gpa,4096))); 
 T("user write after (CoW with VM)",N,EACH(*(volatile char*)p=1));
 unvm(); munmap(mem,MEM);
 mem=map(fd); vm(mem); T("PRE_FAULT single, nothing mapped",N,EACH(prefault(gpa,4096))); 
 T("PRE_FAULT 2MiB all, nothing mapped",512,prefault(2<<20,2<<20)); 
 T("POPULATE_WRITE single with VM after",N,EACH(madvise(p,4096,MADV_POPULATE_WRITE)));
 T("PRE_FAULT single rw",N,EACH(prefault(gpa,4096)));
 unvm(); munmap(mem,MEM);
 mem=map(fd); vm(mem); T("POPULATE_WRITE single with VM, first",N,EACH(madvise(p,4096,MADV_POPULATE_WRITE)));
 T("PRE_FAULT 64K around (populated one of)",N,EACH(prefault(gpa&~0xffffull,65536)));
 unvm(); munmap(mem,MEM);
 /* uffd copy */
 mem=map(fd); { int u=syscall(SYS_userfaultfd,O_CLOEXEC|O_NONBLOCK); struct uffdio_api a={.api=UFFD_API}; ioctl(u,UFFDIO_API,&a);
  struct uffdio_register r={.range={(uint64_t)mem,MEM},.mode=UFFDIO_REGISTER_MODE_MISSING}; T("uffd register",1,if(ioctl(u,UFFDIO_REGISTER,&r))perror("reg"));
  int bad=0; T("UFFDIO_COPY single scattered",N,EACH(struct uffdio_copy k={.dst=(uint64_t)p,.src=(uint64_t)buf,.len=4096}; if(ioctl(u,UFFDIO_COPY,&k))bad++)); printf("bad %d\n",bad);
  { struct uffdio_copy k={.dst=(uint64_t)mem+(4<<20),.src=(uint64_t)buf,.len=2<<20}; T("UFFDIO_COPY 512 run",512,if(ioctl(u,UFFDIO_COPY,&k))perror("copy")); }
  struct uffdio_range rr={(uint64_t)mem,MEM}; T("uffd unregister",1,ioctl(u,UFFDIO_UNREGISTER,&rr)); close(u);} munmap(mem,MEM);
 /* anon */
 mem=map(fd); T("mmap anon fixed 4K single",N,EACH(mmap(p,4096,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED,-1,0))); T("pread into it",N,EACH(pread(fd,p,4096,gpa))); munmap(mem,MEM);
 mem=map(fd); T("mmap anon fixed 2M",1,mmap(mem+(2<<20),2<<20,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED,-1,0)); madvise(mem+(2<<20),2<<20,MADV_HUGEPAGE); T("touch huge",1,mem[2<<20]=1); T("pread 2M",1,pread(fd,mem+(2<<20),2<<20,2<<20));
 vm(mem); T("PRE_FAULT 2M huge anon",1,prefault(2<<20,2<<20)); unvm(); munmap(mem,MEM);
 /* anon cont area + populate: dense anon */
 { char*a=mmap(0,N*4096,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS,-1,0); madvise(a,N*4096,MADV_NOHUGEPAGE); T("anon dense populate write",N,madvise(a,N*4096,MADV_POPULATE_WRITE)); T("pread into populated dense",N,pread(fd,a,N*4096,0));
  mem=map(fd); T("mremap single into place",N,EACH(mremap(a+i*4096,4096,4096,MREMAP_MAYMOVE|MREMAP_FIXED,p))); munmap(mem,MEM);} 
 /* collapse */
 { char*s=mmap(0,MEM+(2<<20),PROT_NONE,MAP_PRIVATE|MAP_ANONYMOUS,-1,0); s=(char*)(((uintptr_t)s+(2<<20)-1)&~((2ull<<20)-1)); s=mmap(s,MEM,PROT_READ,MAP_SHARED|MAP_FIXED,fd,0); int r; T("MADV_COLLAPSE 2M shared ro",1,r=madvise(s,2<<20,MADV_COLLAPSE)); printf("r=%d %s\n",r,r?strerror(errno):""); T("MADV_COLLAPSE 20M shared ro",10,r=madvise(s+(16<<20),20<<20,MADV_COLLAPSE)); printf("r=%d %s\n",r,r?strerror(errno):""); munmap(s,MEM);} 
 mem=map(fd); vm(mem); T("PRE_FAULT 4K in huge shared, private map",1,prefault(0,4096)); T("PRE_FAULT 2nd page of it",1,prefault(8192,4096)); 
 T("PRE_FAULT 20M huge",10,prefault(16<<20,20<<20)); 
 T("write into huge region (split)",1,mem[4096]=1); T("PRE_FAULT back",1,prefault(0,4096)); unvm(); munmap(mem,MEM);
 mem=map(fd); T("POPULATE_WRITE single, 10 in huge cache region",10,for(int i=0;i<10;i++)madvise(mem+(16<<20)+i*47*4096,4096,MADV_POPULATE_WRITE)); 
 T("POPULATE_READ single in same region",10,for(int i=0;i<10;i++)madvise(mem+(16<<20)+(i*47+20)*4096,4096,MADV_POPULATE_READ)); 
 T("POPULATE_READ 2M of same region",1,madvise(mem+(16<<20),2<<20,MADV_POPULATE_READ));
 vm(mem); T("PRE_FAULT ",10,for(int i=0;i<10;i++)prefault((16<<20)+(i*47+20)*4096,4096)); unvm(); munmap(mem,MEM);
 printf("thp shmem: "); fflush(stdout); system("cat /sys/kernel/mm/transparent_hugepage/shmem_enabled"); 
 return 0; }
