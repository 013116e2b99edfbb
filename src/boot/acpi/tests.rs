use super::*;

fn machine(vcpus: u32, devices: u32) -> BootMachine {
    let device = |n: u32| VirtioDevice {
        base: layout::VIRTIO_MMIO_START + u64::from(n) * layout::VIRTIO_MMIO_LEN,
        len: layout::VIRTIO_MMIO_LEN,
        gsi: layout::VIRTIO_GSI_START + n,
    };
    BootMachine {
        vcpus,
        memory_bytes: 1 << 28,
        virtio: (0..devices).map(device).collect(),
        serial: true,
        vmgenid: true,
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at a guest physical address.
fn table(image: &[u8], address: u64) -> &[u8] {
    let rest = &image[usize::try_from(address - layout::ACPI_START).unwrap()..];
    let table = &rest[..usize::try_from(number(rest, 4, 4)).unwrap()];
    assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
    table
}

/// FADT, MADT and DSDT, found the way an operating system finds them.
fn found(image: &[u8]) -> (&[u8], &[u8], &[u8]) {
    assert_eq!(&image[..8], b"RSD PTR ");
    assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
    let xsdt = table(image, number(image, 24, 8));
    assert_eq!((&xsdt[..4], xsdt.len()), (b"XSDT".as_slice(), 36 + 2 * 8));
    let fadt = table(image, number(xsdt, 36, 8));
    let madt = table(image, number(xsdt, 44, 8));
    let dsdt = table(image, number(fadt, 140, 8));
    assert_eq!(
        (&fadt[..4], &madt[..4], &dsdt[..4]),
        (b"FACP".as_slice(), b"APIC".as_slice(), b"DSDT".as_slice())
    );
    (fadt, madt, dsdt)
}

#[test]
fn every_table_is_found_with_a_good_checksum() {
    for (vcpus, devices) in [(1, 0), (8, 19)] {
        found(&tables(&machine(vcpus, devices)).unwrap());
    }
}

#[test]
fn the_fadt_names_the_power_devices_registers() {
    let image = tables(&machine(1, 0)).unwrap();
    let (fadt, ..) = found(&image);
    // Offsets: ACPI 6.5, table 5.9.
    assert_eq!(number(fadt, 112, 4) >> 20 & 1, 1, "hardware-reduced");
    assert_eq!(number(fadt, 112, 4) >> 10 & 1, 1, "reset register supported");
    assert_eq!(number(fadt, 109, 2) & 0b10, 0, "no 8042");
    let register = |at| (fadt[at], number(fadt, at + 4, 8));
    assert_eq!(register(116), (1, 0x605));
    assert_eq!(fadt[128], 6);
    assert_eq!((register(244), register(256)), ((1, 0x604), (1, 0x605)));
}

#[test]
fn the_madt_lists_every_vcpu_and_the_ioapic() {
    for vcpus in 1..=8 {
        let image = tables(&machine(vcpus, 0)).unwrap();
        let (_, madt, _) = found(&image);
        assert_eq!((number(madt, 36, 4), number(madt, 40, 4)), (layout::LAPIC_ADDR, 0));
        let (cpus, ioapic) = madt[44..].split_at(8 * vcpus as usize);
        for (id, cpu) in (0u8..).zip(cpus.chunks(8)) {
            assert_eq!(cpu, [0, 8, id, id, 1, 0, 0, 0]);
        }
        assert_eq!((ioapic[0], ioapic[1], number(ioapic, 4, 4)), (1, 12, layout::IOAPIC_ADDR));
    }
}

/// The part of AML that the DSDT uses, parsed strictly.
#[derive(Debug, PartialEq)]
enum Term {
    Scope(String, Vec<Term>),
    Device(String, Vec<Term>),
    Name(String, Box<Term>),
    Number(u64),
    Text(String),
    Buffer(Vec<u8>),
    Package(Vec<Term>),
    Method(String, u8, Vec<Term>),
    Notify(String, Box<Term>),
}

struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    /// PkgLength (ACPI 6.5, 20.2.4): counts its own bytes.
    fn package(&mut self) -> Parser<'a> {
        let before = self.0.len();
        let lead = self.take(1)[0];
        let more = usize::from(lead >> 6);
        let low = usize::from(if more == 0 { lead & 0x3f } else { lead & 0xf });
        let length =
            self.take(more).iter().enumerate().fold(low, |l, (i, b)| l | usize::from(*b) << (4 + 8 * i));
        Parser(self.take(length - (before - self.0.len())))
    }

    /// One name, or two behind a DualNamePrefix (ACPI 6.5, 20.2.2).
    fn path(&mut self) -> String {
        let root = self.0[0] == b'\\';
        let mut path = String::from_utf8(self.take(usize::from(root)).to_vec()).unwrap();
        let names = if self.0[0] == 0x2e { self.take(1).len() + 1 } else { 1 };
        for number in 0..names {
            path.push_str(if number > 0 { "." } else { "" });
            path.push_str(std::str::from_utf8(self.take(4)).unwrap());
        }
        path
    }

    fn all(mut self) -> Vec<Term> {
        let mut terms = Vec::new();
        while !self.0.is_empty() {
            terms.push(self.term());
        }
        terms
    }

    fn term(&mut self) -> Term {
        match self.take(1)[0] {
            0x10 => self.named(Term::Scope),
            0x5b => {
                assert_eq!(self.take(1), [0x82]);
                self.named(Term::Device)
            }
            0x08 => Term::Name(self.path(), Box::new(self.term())),
            digit @ 0..=1 => Term::Number(u64::from(digit)),
            size @ 0x0a..=0x0c => Term::Number(number(self.take(1 << (size - 0x0a)), 0, 1 << (size - 0x0a))),
            0x0d => {
                let len = self.0.iter().position(|byte| *byte == 0).unwrap();
                let text = self.take(len + 1);
                Term::Text(String::from_utf8(text[..len].to_vec()).unwrap())
            }
            0x11 => {
                let mut body = self.package();
                let Term::Number(len) = body.term() else { panic!("a buffer without a size") };
                assert_eq!(body.0.len() as u64, len);
                Term::Buffer(body.0.to_vec())
            }
            0x12 => {
                let mut body = self.package();
                let count = body.take(1)[0];
                let terms = body.all();
                assert_eq!(terms.len(), usize::from(count));
                Term::Package(terms)
            }
            0x14 => {
                let mut body = self.package();
                let (name, flags) = (body.path(), body.take(1)[0]);
                Term::Method(name, flags, body.all())
            }
            0x86 => Term::Notify(self.path(), Box::new(self.term())),
            other => panic!("AML opcode {other:#x}"),
        }
    }

    fn named(&mut self, make: fn(String, Vec<Term>) -> Term) -> Term {
        let mut body = self.package();
        let name = body.path();
        make(name, body.all())
    }
}

fn name(name: &str, value: Term) -> Term {
    Term::Name(name.into(), Box::new(value))
}

/// An extended interrupt descriptor (ACPI 6.5, 6.4.3.6): consumer, edge, active high, exclusive; and the end tag.
fn interrupt_bytes(gsi: u8) -> Vec<u8> {
    vec![0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0]
}

/// A resource list with its end tag, whose checksum makes the sum zero or is left out as zero.
fn resources(term: &Term) -> Vec<u8> {
    let Term::Buffer(bytes) = term else { panic!("_CRS is no buffer") };
    let (list, end) = bytes.split_at(bytes.len() - 2);
    assert_eq!(end[0], 0x79);
    assert!(end[1] == 0 || sum(bytes) == 0);
    list.to_vec()
}

#[test]
fn the_dsdt_parses_to_the_devices_of_the_machine() {
    let image = tables(&machine(1, 19)).unwrap();
    let (_, _, dsdt) = found(&image);
    let mut terms = Parser(&dsdt[36..]).all().into_iter();
    let off = [5, 0, 0, 0].map(Term::Number).into_iter().collect();
    assert_eq!(terms.next(), Some(name("\\_S5_", Term::Package(off))));
    let Some(Term::Scope(scope, mut devices)) = terms.next() else { panic!("no scope") };
    assert_eq!((scope.as_str(), devices.len(), terms.next()), ("\\_SB_", 22, None));

    let Some(Term::Device(com1, fields)) = devices.pop() else { panic!("no serial port") };
    assert_eq!(com1, "COM1");
    // EISA ids are compressed (ACPI 6.5, 19.3.4): PNP0501 is 0x0105d041.
    assert_eq!(fields[0], name("_HID", Term::Number(0x0105_d041)));
    let Term::Name(_, crs) = &fields[2] else { panic!("no _CRS") };
    assert_eq!(resources(crs), [vec![0x47, 1, 0xf8, 3, 0xf8, 3, 0, 8], interrupt_bytes(4)].concat());
    check_generation(&devices.split_off(19));

    for (n, device) in (0u8..).zip(devices) {
        let Term::Device(id, fields) = device else { panic!("no device") };
        assert_eq!(id, format!("V{n:03}"));
        assert_eq!(fields[0], name("_HID", Term::Text("LNRO0005".into())));
        assert_eq!(fields[1], name("_UID", Term::Number(u64::from(n))));
        let Term::Name(_, crs) = &fields[2] else { panic!("no _CRS") };
        let window = [0x86, 9, 0, 1, 0, n << 4, 0, 0xd0, 0, 0x10, 0, 0];
        let window = if n < 16 { window } else { [0x86, 9, 0, 1, 0, (n - 16) << 4, 1, 0xd0, 0, 0x10, 0, 0] };
        assert_eq!(resources(crs), [window.to_vec(), interrupt_bytes(5 + n)].concat());
    }
}

fn check_generation(devices: &[Term]) {
    let text = |text: &str| Term::Text(text.into());
    let [Term::Device(_, counter), Term::Device(_, events)] = devices else { panic!("{devices:?}") };
    assert_eq!(counter[0], name("_HID", text("VMGENCTR")));
    assert_eq!(counter[1], name("_CID", text("VM_Gen_Counter")));
    let address = vec![Term::Number(layout::VMGENID_ADDR), Term::Number(0)];
    assert_eq!(counter[3], name("ADDR", Term::Package(address)));
    assert_eq!(events[0], name("_HID", text("ACPI0013")));
    let Term::Name(_, crs) = &events[2] else { panic!("no _CRS") };
    assert_eq!(resources(crs), interrupt_bytes(3));
    let notify = Term::Notify("\\_SB_.VGEN".into(), Box::new(Term::Number(0x80)));
    assert_eq!(events[3], Term::Method("_EVT".into(), 1, vec![notify]));
}

#[test]
fn a_machine_may_have_no_generation() {
    let image = tables(&BootMachine { vmgenid: false, ..machine(1, 0) }).unwrap();
    let (_, _, dsdt) = found(&image);
    assert!(!dsdt.windows(4).any(|name| name == b"VGEN" || name == b"GED0"));
}

#[test]
fn machines_that_cannot_be_are_refused() {
    assert_eq!(tables(&machine(0, 0)), Err(AcpiError::Vcpus { count: 0 }));
    assert_eq!(tables(&machine(9, 0)), Err(AcpiError::Vcpus { count: 9 }));
    assert_eq!(tables(&machine(1, 20)), Err(AcpiError::Devices { count: 20 }));
    let mut high = machine(1, 1);
    high.virtio[0].base = 0xffff_f001;
    assert_eq!(tables(&high), Err(AcpiError::Window { base: 0xffff_f001, len: 0x1000 }));
}
