/* The floor of the native restore bench: how fast can any program on this host restore a small guest?
 *
 *   cc -O2 -static -o floor floor.c
 *   floor make FILE   boots a tiny guest, stops it at its warm point, writes memory and state to FILE
 *   floor run FILE    restores it, runs it to its first exit, prints a newline, ends with 0
 *
 * `run` makes the system calls that a restore cannot do without, in the order of `vm::Shell` and of
 * src/vcpu/state.rs, and nothing else: no parsing, no checksum, no threads, no devices. The bench times it from before the
 * process is started to the newline, the same two moments as it does for `ember run`; what comes after the newline is
 * the kernel closing the VM.
 *
 * FILE holds 64 MiB of guest RAM, byte for byte and with holes, then `struct state`. It is read by the program that wrote
 * it on the same host, so it has no version and is not checked. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../common/program.h"

enum {
    RAM_BYTES = 64 << 20,
    MSRS_MAX = 512,
    CPUID_MAX = 256,
    XSAVE_MAX = 16 << 10, /* 4 KiB unless KVM_CAP_XSAVE2 says more; AMX needs 11 KiB */
    IRQCHIPS = 3,         /* two PICs, one I/O APIC */

    PORT_CONTROL = 0xe4, /* of the port interface (docs/port-interface.md) */
    KVM_TSS_ADDRESS = 0xfffbd000,
};

/* Where the guest's tables lie, as in docs/port-interface.md. */
enum {
    GDT = 0x1000,
    TSS = 0x2000,
    PML4 = 0x3000,
    PDPT = 0x4000,
    DIRECTORIES = 0x5000, /* four, 1 GiB each */
    STACK_TOP = 0x80000,
    IMAGE = 0x100000,
};

/* The guest: announces its warm point, then asks for the length of its event. That IN is the first exit of a restored
 * guest, as it is for every small guest. */
__asm__(".pushsection .rodata\n"
        "guest_start:\n"
        "  movl $1, %eax\n"
        "  outl %eax, $0xe4\n"
        "  inl $0xe4, %eax\n"
        "1: jmp 1b\n"
        "guest_end:\n"
        ".popsection");
extern const uint8_t guest_start[], guest_end[];

/* Everything that KVM keeps of a one-vCPU machine. */
struct state {
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[CPUID_MAX];
    } cpuid;
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entries[MSRS_MAX];
    } msrs;
    struct kvm_mp_state mp_state;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    uint8_t xsave[XSAVE_MAX];
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_irqchip irqchips[IRQCHIPS];
    struct kvm_clock_data clock;
};

struct machine {
    int kvm, vm, vcpu; /* descriptors */
    uint8_t *ram;
    struct kvm_run *run;
};

#define CALL(fd, request, argument) call(fd, request, (void *)(uintptr_t)(argument), #request)

static int call(int fd, unsigned long request, void *argument, const char *name)
{
    int result = ioctl(fd, request, argument);

    if (result < 0)
        die(name);
    return result;
}

/* The order matters: a memory slot that comes after the irqchip waits for an SRCU grace period. */
static struct machine build(int file, int sharing)
{
    struct machine machine;
    int run_bytes;

    machine.ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, sharing | MAP_NORESERVE, file, 0);
    if (machine.ram == MAP_FAILED)
        die("map the guest's memory");
    machine.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (machine.kvm < 0)
        die("open /dev/kvm");
    machine.vm = CALL(machine.kvm, KVM_CREATE_VM, 0);
    CALL(machine.vm, KVM_SET_USER_MEMORY_REGION,
         (&(struct kvm_userspace_memory_region){ .memory_size = RAM_BYTES, .userspace_addr = (uintptr_t)machine.ram }));
    CALL(machine.vm, KVM_SET_TSS_ADDR, KVM_TSS_ADDRESS);
    CALL(machine.vm, KVM_CREATE_IRQCHIP, 0);
    machine.vcpu = CALL(machine.vm, KVM_CREATE_VCPU, 0);
    run_bytes = CALL(machine.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    machine.run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, machine.vcpu, 0);
    if (machine.run == MAP_FAILED)
        die("map the vCPU");
    return machine;
}

/* ---- run ---- */

static void restore(const struct machine *machine, struct state *state)
{
    CALL(machine->vcpu, KVM_SET_CPUID2, &state->cpuid);
    CALL(machine->vcpu, KVM_SET_MP_STATE, &state->mp_state);
    CALL(machine->vcpu, KVM_SET_REGS, &state->regs);
    CALL(machine->vcpu, KVM_SET_SREGS, &state->sregs);
    CALL(machine->vcpu, KVM_SET_XSAVE, state->xsave);
    CALL(machine->vcpu, KVM_SET_XCRS, &state->xcrs);
    CALL(machine->vcpu, KVM_SET_DEBUGREGS, &state->debugregs);
    CALL(machine->vcpu, KVM_SET_LAPIC, &state->lapic);
    if (CALL(machine->vcpu, KVM_SET_MSRS, &state->msrs) != (int)state->msrs.head.nmsrs)
        die("set every MSR");
    CALL(machine->vcpu, KVM_SET_VCPU_EVENTS, &state->events);
    for (int i = 0; i < IRQCHIPS; i++)
        CALL(machine->vm, KVM_SET_IRQCHIP, &state->irqchips[i]);
    CALL(machine->vm, KVM_SET_CLOCK, &state->clock);
}

static void run_to_port(const struct machine *machine, int direction)
{
    CALL(machine->vcpu, KVM_RUN, 0);
    if (machine->run->exit_reason != KVM_EXIT_IO || machine->run->io.direction != direction
        || machine->run->io.port != PORT_CONTROL) {
        fprintf(stderr, "floor: the guest left with exit %u\n", machine->run->exit_reason);
        exit(1);
    }
}

static void run(const char *path)
{
    static struct state state;
    struct machine machine;
    int file = open(path, O_RDONLY | O_CLOEXEC);

    if (file < 0 || pread(file, &state, sizeof state, RAM_BYTES) != sizeof state)
        die("read the dump");
    machine = build(file, MAP_PRIVATE);
    restore(&machine, &state);
    run_to_port(&machine, KVM_EXIT_IO_IN);
    if (write(STDOUT_FILENO, "\n", 1) != 1)
        die("write to standard output");
}

/* ---- make: the cold start of a small guest, as docs/port-interface.md describes it ---- */

enum {
    DATA_SELECTOR = 0x28 | 3,
    CODE_SELECTOR = 0x30 | 3,
    TSS_SELECTOR = 0x40,
    IO_BITMAP = 0x68,   /* behind the 64-bit TSS */
    IO_PORTS = 0x1000,  /* ports that the bitmap allows */
    TSS_LIMIT = IO_BITMAP + IO_PORTS / 8,
};

static void store16(const struct machine *machine, uint64_t address, uint16_t value)
{
    memcpy(machine->ram + address, &value, sizeof value);
}

static void store64(const struct machine *machine, uint64_t address, uint64_t value)
{
    memcpy(machine->ram + address, &value, sizeof value);
}

/* Identity for the first 4 GiB in pages of 2 MiB, all open to privilege level 3. */
static void write_page_tables(const struct machine *machine)
{
    const uint64_t present_write_user = 0x7, page_2m = 0x80;

    store64(machine, PML4, PDPT | present_write_user);
    for (uint64_t gib = 0; gib < 4; gib++)
        store64(machine, PDPT + 8 * gib, (DIRECTORIES + 0x1000 * gib) | present_write_user);
    for (uint64_t page = 0; page < 4 * 512; page++)
        store64(machine, DIRECTORIES + 8 * page, page << 21 | page_2m | present_write_user);
}

/* The I/O permission bitmap: a clear bit allows a port to privilege level 3, and the byte behind the last bit must be all
 * ones (Intel SDM volume 1, 19.5.2). `enter` also gives I/O privilege level 3; docs/port-interface.md says why both. */
static void write_tss(const struct machine *machine)
{
    store16(machine, TSS + 102, IO_BITMAP);
    machine->ram[TSS + TSS_LIMIT] = 0xff;
}

static void write_gdt(const struct machine *machine)
{
    store64(machine, GDT + (DATA_SELECTOR & ~7), 0x00cff3000000ffff);
    store64(machine, GDT + (CODE_SELECTOR & ~7), 0x00affb000000ffff);
    store64(machine, GDT + TSS_SELECTOR, 0x00008b0000000000 | (uint64_t)TSS << 16 | TSS_LIMIT);
}

static void enter(const struct machine *machine)
{
    const struct kvm_segment data = {
        .limit = 0xffffffff, .selector = DATA_SELECTOR, .type = 0x3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1,
    };
    const struct kvm_segment code = {
        .limit = 0xffffffff, .selector = CODE_SELECTOR, .type = 0xb, .present = 1, .dpl = 3, .l = 1, .s = 1, .g = 1,
    };
    const struct kvm_segment tss = {
        .base = TSS, .limit = TSS_LIMIT, .selector = TSS_SELECTOR, .type = 0xb, .present = 1,
    };
    struct kvm_regs regs = { .rip = IMAGE, .rsp = STACK_TOP, .rflags = 0x3002 }; /* I/O privilege level 3 */
    struct kvm_sregs sregs;

    CALL(machine->vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.tr = tss;
    sregs.gdt = (struct kvm_dtable){ .base = GDT, .limit = TSS_SELECTOR + 15 };
    sregs.idt = (struct kvm_dtable){ .base = 0, .limit = 0 };
    sregs.cr0 = 0x80050033; /* PG, AM, WP, NE, ET, MP, PE */
    sregs.cr3 = PML4;
    sregs.cr4 = 0x50620; /* OSXSAVE, FSGSBASE, OSXMMEXCPT, OSFXSR, PAE */
    sregs.efer = 0xd01;  /* NXE, LMA, LME, SCE */
    CALL(machine->vcpu, KVM_SET_SREGS, &sregs);
    CALL(machine->vcpu, KVM_SET_REGS, &regs);
}

/* Every MSR that KVM lists and lets a host both read and set. */
static void save_msrs(const struct machine *machine, struct state *state)
{
    struct {
        struct kvm_msr_list head;
        uint32_t indices[MSRS_MAX];
    } list = { .head.nmsrs = MSRS_MAX };
    uint32_t *count = &state->msrs.head.nmsrs;

    CALL(machine->kvm, KVM_GET_MSR_INDEX_LIST, &list);
    for (uint32_t i = 0; i < list.head.nmsrs; i++) {
        struct {
            struct kvm_msrs head;
            struct kvm_msr_entry entry;
        } one = { .head.nmsrs = 1, .entry.index = list.indices[i] };

        if (ioctl(machine->vcpu, KVM_GET_MSRS, &one) == 1 && ioctl(machine->vcpu, KVM_SET_MSRS, &one) == 1)
            state->msrs.entries[(*count)++] = one.entry;
    }
}

static void save(const struct machine *machine, struct state *state)
{
    CALL(machine->vcpu, KVM_GET_MP_STATE, &state->mp_state);
    CALL(machine->vcpu, KVM_GET_REGS, &state->regs);
    CALL(machine->vcpu, KVM_GET_SREGS, &state->sregs);
    if (CALL(machine->kvm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2) > XSAVE_MAX) {
        errno = E2BIG;
        die("save the XSAVE area");
    }
    CALL(machine->vcpu, KVM_GET_XSAVE2, state->xsave); /* the same as KVM_GET_XSAVE where 4 KiB are enough */
    CALL(machine->vcpu, KVM_GET_XCRS, &state->xcrs);
    CALL(machine->vcpu, KVM_GET_DEBUGREGS, &state->debugregs);
    CALL(machine->vcpu, KVM_GET_LAPIC, &state->lapic);
    save_msrs(machine, state);
    CALL(machine->vcpu, KVM_GET_VCPU_EVENTS, &state->events);
    for (uint32_t i = 0; i < IRQCHIPS; i++) {
        state->irqchips[i].chip_id = i;
        CALL(machine->vm, KVM_GET_IRQCHIP, &state->irqchips[i]);
    }
    CALL(machine->vm, KVM_GET_CLOCK, &state->clock);
    state->clock.flags = 0; /* a state, not a request to follow the host's wall clock */
}

static void make(const char *path)
{
    static struct state state = { .cpuid.head.nent = CPUID_MAX };
    struct machine machine;
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (file < 0 || ftruncate(file, RAM_BYTES) < 0)
        die("make the dump");
    machine = build(file, MAP_SHARED);
    write_page_tables(&machine);
    write_tss(&machine);
    write_gdt(&machine);
    memcpy(machine.ram + IMAGE, guest_start, guest_end - guest_start);
    CALL(machine.kvm, KVM_GET_SUPPORTED_CPUID, &state.cpuid);
    CALL(machine.vcpu, KVM_SET_CPUID2, &state.cpuid);
    enter(&machine);

    run_to_port(&machine, KVM_EXIT_IO_OUT);
    /* The OUT is complete only when the vCPU enters again (Documentation/virt/kvm/api.rst, 5); it shall do no more. */
    machine.run->immediate_exit = 1;
    if (ioctl(machine.vcpu, KVM_RUN, 0) == 0 || errno != EINTR)
        die("stop the guest at its warm point");
    save(&machine, &state);
    if (pwrite(file, &state, sizeof state, RAM_BYTES) != sizeof state || fsync(file) < 0)
        die("write the dump");
}

int main(int count, char **arguments)
{
    if (count == 3 && strcmp(arguments[1], "make") == 0)
        make(arguments[2]);
    else if (count == 3 && strcmp(arguments[1], "run") == 0)
        run(arguments[2]);
    else {
        fputs("usage: floor make FILE | floor run FILE\n", stderr);
        return 2;
    }
    return 0;
}
