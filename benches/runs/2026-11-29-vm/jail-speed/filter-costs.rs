#![allow(dead_code)]
use std::time::Instant;
use seccompiler::*;
#[path="src/jail/lists.rs"]
mod lists;
#[path="src/jail/compile.rs"]
mod compile;
use lists::List;
fn ids()->compile::Ids{compile::Ids{process:std::process::id(),thread:unsafe{libc::gettid() as u32}}}
fn apply(p:&[sock_filter])->u64{ let f=libc::sock_fprog{len:p.len() as u16,filter:p.as_ptr() as *mut _}; let t=Instant::now(); let r=unsafe{libc::syscall(libc::SYS_seccomp,1,0,&f)}; let e=t.elapsed().as_nanos() as u64; if r!=0{return 0} e}
fn run(name:&str,n:usize,f:impl Fn()->u64){let mut v=vec![];for _ in 0..n{let mut fd=[0;2];unsafe{libc::pipe(fd.as_mut_ptr());let pid=libc::fork();if pid==0{libc::prctl(38,1,0,0,0);let t=f();libc::write(fd[1],&t as *const u64 as _,8);libc::_exit(0)}let mut t=0u64;libc::read(fd[0],&mut t as *mut u64 as _,8);libc::waitpid(pid,std::ptr::null_mut(),0);libc::close(fd[0]);libc::close(fd[1]);v.push(t)}}v.sort();println!("{name}: min {} p50 {} p99 {} ns",v[0],v[n/2],v[n*99/100]);}
fn main(){let n:usize=std::env::args().nth(1).and_then(|a|a.parse().ok()).unwrap_or(200);
 for l in [List::Main,List::Shell,List::Vcpu,List::Console]{
  let (p,t)=(compile::chain(l,ids()).unwrap(),compile::compile(l,ids()).unwrap()); println!("{l:?}: linear {} short {}",p.len(),t.len());
  if n==1 {for (i,x) in t.iter().enumerate(){println!("{i}: {:x} {} {} {:x}",x.code,x.jt,x.jf,x.k)}}
  run("  make (fresh process)",n,||{let s=Instant::now();let p=compile::chain(l,ids()).unwrap();let e=s.elapsed().as_nanos() as u64;std::hint::black_box(p);e});
  run("  apply linear",n,||apply(&p));
  run("  apply short",n,||apply(&t));
  run("  copy and apply short",n,||{let s=Instant::now();let v=t.to_vec();apply(&v);s.elapsed().as_nanos() as u64});
 }}
